"""Processes. In reading order:

``program``: command line and environment of this program's children, and what to say of one that died
``child``: one request to a child within limits of memory and time, and its answer
``worker``: a child that answers one request after another
``async_child``: a child of an asyncio program
``parent_death``: a process ends with its parent
``watched_process``: shutdown event and health endpoint of a supervised process
"""
