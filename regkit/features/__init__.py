"""What is compared instead of intensities: MIND and the channels of a network."""
