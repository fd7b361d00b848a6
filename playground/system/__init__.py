"""The process and the machine: the worker as a child, threads, memory, what logs may say."""
