"""What the machine says of itself: what it is, how fast and warm it runs, what it draws, who else works.

Each file reads one kind of source. A source that is not there gives None and never 0; why it is not
there goes into `Missing`.
"""
