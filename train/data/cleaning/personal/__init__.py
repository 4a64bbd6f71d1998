"""Personal data in texts: found by patterns and their checks, and replaced by what kind it was.

mask        replaces what the others find
numbers     phones, cards, account and identity numbers
addresses   e-mail and IP addresses
keys        passwords, keys and tokens of services

Each pattern takes time proportional to the text, whatever it holds: repetitions are bounded or unambiguous.
"""
