"""The model of a run: loaded or made, checked, and written."""
