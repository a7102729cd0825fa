"""A Python tooz process that does what it is told, line by line; answers one line of JSON each."""

import json
import os
import sys

from tooz import coordination


def main():
    url, member = sys.argv[1], sys.argv[2].encode()
    peer = coordination.get_coordinator(url, member)
    peer.start()
    locks = {}
    say("started")
    for line in sys.stdin:
        verb, _, rest = line.rstrip("\n").partition(" ")
        name = rest.encode()
        try:
            say(obey(peer, locks, verb, name))
        except Exception as error:  # whatever it is, the test says whether it was expected
            say({"error": type(error).__name__})


def obey(peer, locks, verb, name):
    if verb == "try":
        lock = locks.setdefault(name, peer.get_lock(name))
        return lock.acquire(blocking=False)
    if verb == "acquire":
        lock = locks.setdefault(name, peer.get_lock(name))
        return lock.acquire(blocking=10)
    if verb == "count":
        return count(peer, name.decode())
    if verb == "release":
        return locks.pop(name).release()
    if verb == "create":
        return peer.create_group(name).get()
    if verb == "delete":
        return peer.delete_group(name).get()
    if verb == "join":
        return peer.join_group(name, capabilities={"from": "python"}).get()
    if verb == "leave":
        return peer.leave_group(name).get()
    if verb == "beat":
        return peer.heartbeat()
    if verb == "groups":
        return sorted(group.decode() for group in peer.get_groups().get())
    if verb == "members":
        return sorted(member.decode() for member in peer.get_members(name).get())
    if verb == "capabilities":
        found = peer.get_members_with_capabilities(name).get()
        return {member.decode(): capabilities for member, capabilities in found.items()}
    raise ValueError(verb)


def count(peer, rest):
    """Adds one to a file's number as often as told, and notices everybody else who does so meanwhile."""
    times, _, path = rest.partition(" ")
    lock = peer.get_lock(b"counter")
    for _ in range(int(times)):
        if not lock.acquire(blocking=120):
            return "never got it"
        os.close(os.open(path + ".inside", os.O_CREAT | os.O_EXCL))
        with open(path) as file:
            number = int(file.read())
        with open(path, "w") as file:
            file.write(str(number + 1))
        with open(path + ".log", "a") as file:
            file.write("p")
        os.unlink(path + ".inside")
        lock.release()
    return "counted"


def say(what):
    print(json.dumps(what), flush=True)


main()
