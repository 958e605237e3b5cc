"""What the process may take from the machine, and how it starts and ends."""
