"""What is done to a row: one file a kind of task, its section of the job and its work.

`base` says what every task is, `row` makes a job's tasks one. A new kind is one file here, a name
in `job.AnyTask`, and its test.
"""
