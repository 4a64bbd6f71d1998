"""The pages for people, and the API's own document."""
