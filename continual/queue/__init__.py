"""Queued jobs: their table and files, the broker, and the worker that runs them. In reading order:

``states``: a job's states, row, lease and events
``jobs``: what may be done to a job: create, claim, renew its lease, finish
``cancel``: what happens when a job is cancelled, or its key ends
``files``: uploaded files; ``check_file`` reads them when they come, ``document_count`` counts the documents of small ones
``worker``: ``everlearn worker``, which keeps broker, consumer and reconciler running
``broker``: the Redis or Valkey that carries job ids
``restarted_process``: a process that the worker starts again when it dies
``consumer``: the Celery process that receives job ids
``reconciler``: publishes waiting jobs again, and takes back those whose worker is gone
``owner``: which process holds a lease, and whether it is gone
``attempt``: one attempt at a job: claim it, start the child, renew the lease
``child``: the process of the child, which ends with its lease
``steps``: a job's folder: finished steps are not made again
"""
