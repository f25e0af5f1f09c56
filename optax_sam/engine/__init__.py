"""What a step of a method needs, whatever the method."""
