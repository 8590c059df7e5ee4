"""What the examples of the line learn, measured on functions of modules that no stage learned from."""
