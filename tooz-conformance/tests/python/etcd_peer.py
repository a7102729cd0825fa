"""A Python tooz process on etcd that does what it is told, line by line; answers one line of JSON each."""

import json
import sys
import urllib.parse

import etcd3gw
from tooz import coordination


def main():
    url, member = sys.argv[1], sys.argv[2].encode()
    peer = coordination.get_coordinator(url, member)
    peer.start()
    place = urllib.parse.urlsplit(url)
    raw = etcd3gw.client(host=place.hostname, port=place.port, api_path="/v3/")
    locks = {}
    say("started")
    for line in sys.stdin:
        verb, _, rest = line.rstrip("\n").partition(" ")
        try:
            say(obey(peer, raw, locks, verb, rest.encode()))
        except Exception as error:  # whatever it is, the test says whether it was expected
            say({"error": type(error).__name__})


def obey(peer, raw, locks, verb, name):
    if verb == "try":
        return locks.setdefault(name, peer.get_lock(name)).acquire(blocking=False)
    if verb == "acquire":
        return locks.setdefault(name, peer.get_lock(name)).acquire()
    if verb == "release":
        return locks.pop(name).release()
    if verb == "break":
        return peer.get_lock(name).break_()
    if verb == "contend":
        return contend(peer, raw, int(name))
    if verb == "create":
        return peer.create_group(name).get()
    if verb == "delete":
        return peer.delete_group(name).get()
    if verb == "join":
        return peer.join_group(name, capabilities={"from": "python"}).get()
    if verb == "update":
        return peer.update_capabilities(name, {"from": "python", "new": True}).get()
    if verb == "leave":
        return peer.leave_group(name).get()
    if verb == "beat":
        peer.heartbeat()
        return None
    if verb == "members":
        return sorted(member.decode() for member in peer.get_members(name).get())
    if verb == "capabilities":
        found = peer.get_members_with_capabilities(name).get()
        return {member.decode(): capabilities for member, capabilities in found.items()}
    raise ValueError(verb)


def contend(peer, raw, times):
    """Takes one lock this often; counts how often somebody else was inside, too."""
    lock, overlaps = peer.get_lock(b"contended"), 0
    while times:
        if not lock.acquire(blocking=False):
            continue
        if not raw.create("inside", "python"):
            overlaps += 1
        raw.delete("inside")
        lock.release()
        times -= 1
    return overlaps


def say(what):
    print(json.dumps(what), flush=True)


main()
