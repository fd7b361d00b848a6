"""The process and the machine: the worker as a child process, threads, memory, logging."""
