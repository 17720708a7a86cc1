"""What advice looks for in a run: each module holds rules of one kind, each rule a small function over `Evidence`."""
