"""Limits on clients: keys, rates, budgets.

1. `auth.py`: API keys.
2. `origin.py`: protection against other sites' pages while there is no key.
3. `rate_limit.py`: requests and tokens per minute, and requests in flight.
4. `cost.py`: an estimate of a request's tokens, to reserve them.
5. `meter.py`: usage by key, and monthly budgets.
6. `shared.py`: what several gateways share through Redis.
"""
