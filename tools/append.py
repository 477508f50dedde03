"""Processes that append to one file at the same time. Part of tools/suites."""

import os

SIZE = 100


def record(writer, number):
    """A record says whose and which it is, over and over, so that a part of another shows."""
    text = b"%d %d|" % (writer, number)
    return (text * (SIZE // len(text) + 1))[: SIZE - 1] + b"\n"


def race(path, writers, records):
    """Each writer appends its records, one write each. Returns how often the writers took turns, and what is
    wrong with the file, if something is."""
    ready, go = os.pipe()
    children = []
    for writer in range(writers):
        child = os.fork()
        if child == 0:
            os.close(go)
            os._exit(write(path, writer, records, ready))
        children.append(child)
    os.close(ready)
    # All begin when the other end is closed.
    os.close(go)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        return 0, f"writers ended with {codes}"
    return read(path, writers, records)


def write(path, writer, records, ready):
    try:
        file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        os.read(ready, 1)
        for number in range(records):
            if os.write(file, record(writer, number)) != SIZE:
                return 2
        os.fsync(file)
        os.close(file)
        return 0
    except OSError as error:
        print(f"append: writer {writer}: {error}", flush=True)
        return 1


def read(path, writers, records):
    """Every record must be there, whole, and each writer's in their order."""
    following = [0] * writers
    turns, last = 0, None
    with open(path, "rb") as file:
        at = 0
        while found := file.read(SIZE):
            for writer in range(writers):
                if found == record(writer, following[writer]):
                    following[writer] += 1
                    turns += writer != last
                    last = writer
                    break
            else:
                return turns, f"at {at}: {found!r}, but {following} follow"
            at += SIZE
    if following != [records] * writers:
        return turns, f"{following} records of {records} each"
    return turns, None
