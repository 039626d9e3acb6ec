"""Where bytes lie: a folder, an S3 service, or memory (for tests). All three keep the promises of ``base.Backend``."""
