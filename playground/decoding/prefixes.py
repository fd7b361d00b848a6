"""The memory of keys and values: what running turns hold, and lines of ended turns, which the next turn of a
conversation begins with.
"""

from dataclasses import dataclass, field

WORTH = 16  # tokens; a shorter common beginning is read again


@dataclass
class Memory:
    """At most `budget` bytes for all lines. Ended lines are kept as long as nobody else needs their room, and let go of
    from the oldest.
    """

    budget: int
    used: int = 0  # bytes of running lines
    kept: list = field(default_factory=list)  # [(forward, line)], the latest last

    def take(self, nbytes):
        """Make room for a running line; returns whether there is. A line that fits nowhere may run alone."""
        if self.used and self.used + nbytes > self.budget:
            return False
        self.used += nbytes
        while self.kept and self.used + sum(line.nbytes for _, line in self.kept) > self.budget:
            self.kept.pop(0)
        return True

    def give_back(self, nbytes, forward, line):
        """A line has ended; it is kept where it fits, if its prompt was read and it has keys that others can begin
        with.
        """
        self.used -= nbytes
        if line and line.prompt and line.nbytes:
            self.kept.append((forward, line))
        while self.kept and self.used + sum(line.nbytes for _, line in self.kept) > self.budget:
            self.kept.pop(0)

    def forget(self, forward):
        """A version is gone, and its keys with it."""
        self.kept = [(f, line) for f, line in self.kept if f is not forward]

    def begin(self, forward, line, prompt):
        """Copy into `line` the longest beginning of `prompt` that a kept line of this version has; at least one token
        is left to read.
        """
        ids, best = prompt[:-1], (0, None, None)
        for owner, other in self.kept:
            if owner is forward:
                reply, tokens = other.shared(ids)
                if tokens > best[0]:
                    best = tokens, other, reply
        tokens, other, reply = best
        if tokens >= WORTH:
            line.take(other, reply, tokens, ids)
            if tokens >= len(other.prompt):  # the same conversation goes on
                self.kept = [(f, kept) for f, kept in self.kept if kept is not other]
        return tokens
