"""Webhooks: the operator's URLs are told how jobs end, signed as Standard Webhooks. In reading order:

``endpoints``: the URLs: added, listed, removed
``outbox``: what is to be told, written in the transaction that ends a job
``deliveries``: which delivery is due, claimed by one worker, and what becomes of it after its answer
``signature``: the headers that prove who sends
``sender``: one try over HTTP
``courier``: the worker's thread that sends what is due
"""
