"""The example app's customers: messages of the demonstration's support desk, at a steady rate."""

import argparse
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from threading import BoundedSemaphore

from service.demo.traffic import DemoMessage, Traffic

# Known to the teacher, to no student, and in nobody's message before.
NEW_MATTER_SHARE = 0.2
PATIENT_CUSTOMERS = 64


def send(url: str, message: DemoMessage) -> None:
    request = urllib.request.Request(url, message.text.encode(), {"x-user": message.user})
    try:
        urllib.request.urlopen(request, timeout=30).close()
    except OSError as error:
        print(f"the desk does not answer: {error}", flush=True)
        time.sleep(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8080/messages")
    parser.add_argument("--rate", type=float, default=20.0, help="messages a second (20)")
    parser.add_argument("--count", type=int, default=0, help="end after so many; 0: never")
    parser.add_argument(
        "--new-matter-after", type=int, default=8_000, help="messages until a new matter comes up"
    )
    options = parser.parse_args()
    traffic, index, started = Traffic(seed=0), 0, time.monotonic()
    places = BoundedSemaphore(PATIENT_CUSTOMERS)
    with ThreadPoolExecutor(max_workers=16) as senders:
        while not options.count or index < options.count:
            share = NEW_MATTER_SHARE if index >= options.new_matter_after else 0.0
            message = traffic.message(index, new_intent_share=share)
            places.acquire()
            senders.submit(send, options.url, message).add_done_callback(lambda _: places.release())
            index += 1
            time.sleep(max(0.0, started + index / options.rate - time.monotonic()))


if __name__ == "__main__":
    main()
