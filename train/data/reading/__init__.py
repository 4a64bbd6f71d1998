"""Files of many forms, read into examples one at a time within bounds."""
