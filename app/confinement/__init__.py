"""What a child process gives up before it opens a stranger's file. Standard library only: it is imported first of all.

`fences.confine` is the whole of it; `landlock` and `seccomp` are what the kernel offers, each in a file of its own.
"""
