"""One execution of a job: plan or resume, execute, verify, finish."""
