"""The steps of a job. Each is ``run(job) -> message``; none knows another, the pipeline tells them in order."""
