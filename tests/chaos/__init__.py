"""Chaos: the real mesh as processes, broken at random under load, judged from outside.

`python -m tests.chaos --rounds N --seed S` runs a campaign (campaign.py). A round starts traffic
(traffic.py), injects faults (faults.py), heals them, waits until the mesh is whole and looks for
leaks (observer.py). The fleet's processes (fleet.py) reach each other through proxies that can
delay, throttle, cut or swallow (proxy.py, meddler.py). Each round's plan follows from the seed.
"""
