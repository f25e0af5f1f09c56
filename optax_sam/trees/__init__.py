"""Operations on pytrees of arrays."""
