"""From a request to an engine's answer.

1. `work.py`: a request as it is sent to an engine.
2. `dispatch.py`: opens a reply, with one retry, waiting, and fallback models.
3. `router.py`: chooses the replica; `prefixes.py` knows which prompts each has cached.
4. `replica.py`: one engine: its connections and recent failures.
5. `reply.py`: sends the work, and reads the answer until it has begun.
6. `events.py`: splits and checks server-sent events.
7. `relay.py`: the response that passes the answer on: the hot path.
8. `shadow.py`: copies of requests for a version on trial.
"""
