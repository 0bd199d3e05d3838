# Calls by oslo.messaging: oslo.py SETTINGS N prints how long each of N calls took, in
# milliseconds, as JSON. The server is a process of its own.
import json
import subprocess
import sys
import threading
import time

import oslo_messaging as om
from oslo_config import cfg

TOPIC = "bench"


class Endpoint:
    def echo(self, ctxt, text):
        return text


def main():
    settings, what = sys.argv[1:]
    cfg.CONF(["--config-file", settings])
    transport = om.get_rpc_transport(cfg.CONF)
    if what == "serve":
        om.get_rpc_server(transport, om.Target(topic=TOPIC, server="one"), [Endpoint()], executor="threading").start()
        print("serving", flush=True)
        threading.Event().wait()
    server = subprocess.Popen([sys.executable, __file__, settings, "serve"], stdout=subprocess.PIPE)
    try:
        server.stdout.readline()
        client = om.get_rpc_client(transport, om.Target(topic=TOPIC), timeout=30)
        text, times = "x" * 256, []
        for i in range(int(what) + 20):
            began = time.perf_counter()
            if client.call({}, "echo", text=text) != text:
                sys.exit("another answer")
            if i >= 20:
                times.append((time.perf_counter() - began) * 1000)
        print(json.dumps(times))
    finally:
        server.kill()


main()
