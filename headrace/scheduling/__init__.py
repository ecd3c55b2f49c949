"""When scheduled groups work.

units       what is scheduled: a group, one platform of a group, a job. Pure
plan        which windows to open now. Pure
windows     the windows, rows in PostgreSQL
positions   where groups stand and what waits for them
scheduler   the loop that opens windows, one at a time by a lock
attendance  what a group is to read now, asked by its workers and their supervisor
report      `headrace schedule`
"""
