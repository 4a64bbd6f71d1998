"""The batch of rows that a decoder computes, and how each row's next token is chosen."""
