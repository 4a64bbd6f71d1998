"""What is left out of the data, and why: broken texts and duplicates."""
