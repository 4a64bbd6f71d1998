"""Chats: templates rendered within bounds, and the tokens that stop a turn."""
