"""A Python tooz process that does what it is told, line by line; answers one line of JSON each."""

import json
import sys
import urllib.parse

from tooz import coordination


def main():
    url, member = sys.argv[1], sys.argv[2].encode()
    peer = coordination.get_coordinator(url, member)
    peer.start()
    inside = Inside(urllib.parse.urlsplit(url))
    locks, elected = {}, []
    say("started")
    for line in sys.stdin:
        verb, _, rest = line.rstrip("\n").partition(" ")
        name = rest.encode()
        try:
            say(obey(peer, inside, locks, elected, verb, name))
        except Exception as error:  # whatever it is, the test says whether it was expected
            say({"error": type(error).__name__})


class Inside:
    """A mark on the server, past every lock, that somebody is inside."""

    def __init__(self, place):
        if place.scheme == "redis":
            import redis

            raw = redis.Redis(host=place.hostname, port=place.port)
            self.enter = lambda: raw.set("inside", "python", nx=True) is not None
        elif place.scheme == "memcached":
            from pymemcache.client.base import Client

            raw = Client((place.hostname, place.port))
            self.enter = lambda: raw.add("inside", "python", noreply=False)
        else:
            import etcd3gw

            raw = etcd3gw.client(host=place.hostname, port=place.port, api_path="/v3/")
            self.enter = lambda: raw.create("inside", "python")
        self.leave = lambda: raw.delete("inside")


def obey(peer, inside, locks, elected, verb, name):
    if verb == "try":
        return locks.setdefault(name, peer.get_lock(name)).acquire(blocking=False)
    if verb == "acquire":
        return locks.setdefault(name, peer.get_lock(name)).acquire(blocking=10)
    if verb == "release":
        return locks.pop(name).release()
    if verb == "owns":
        return locks[name].is_still_owner()
    if verb == "break":
        peer.get_lock(name).break_()
        return None
    if verb == "contend":
        return contend(peer, inside, int(name))
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
    if verb == "campaign":
        peer.watch_elected_as_leader(name, lambda event: elected.append(event.group_id))
        return None
    if verb == "elect":
        peer.run_watchers()
        return len(elected)
    if verb == "leader":
        leader = peer.get_leader(name).get()
        return leader and leader.decode()
    if verb == "groups":
        return sorted(group.decode() for group in peer.get_groups().get())
    if verb == "members":
        return sorted(member.decode() for member in peer.get_members(name).get())
    if verb == "capabilities":
        found = peer.get_members_with_capabilities(name).get()
        return {member.decode(): capabilities for member, capabilities in found.items()}
    raise ValueError(verb)


def contend(peer, inside, times):
    """Takes one lock this often; counts how often somebody else was inside, too."""
    lock, overlaps = peer.get_lock(b"contended"), 0
    while times:
        if not lock.acquire(blocking=False):
            continue
        if not inside.enter():
            overlaps += 1
        inside.leave()
        lock.release()
        times -= 1
    return overlaps


def say(what):
    print(json.dumps(what), flush=True)


main()
