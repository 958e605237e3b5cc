"""What every other room may import, and what imports none of them: the grid, the settings, the errors."""
