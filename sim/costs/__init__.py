"""What a step costs on which hardware, and where that is known from."""
