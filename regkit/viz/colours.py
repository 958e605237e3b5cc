"""The colours that all pictures share; without any import, for bare training machines."""

INK, PALE, DIM = "#0b0e11", "#e9edf0", "#8b96a0"
"""The ground, what is to be read first, and the rest."""
