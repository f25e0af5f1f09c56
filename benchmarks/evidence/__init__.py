"""What the papers claim, tried at a scale that two cores carry."""
