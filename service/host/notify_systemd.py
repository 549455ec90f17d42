"""What systemd is told about this process: ready, alive, stopping. Silent where nobody listens."""

import os
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Self

import structlog

log = structlog.get_logger()

SEND_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceManager:
    """The other end of systemd's notification socket (sd_notify)."""

    address: str = ""  # "": nobody listens
    watchdog_seconds: float | None = None  # we are killed after so long a silence

    @classmethod
    def of(cls, environment: MutableMapping[str, str]) -> Self:
        """As systemd named itself there. Taken out: no child may speak in our place."""
        address = environment.pop("NOTIFY_SOCKET", "")
        microseconds = environment.pop("WATCHDOG_USEC", "")
        meant = environment.pop("WATCHDOG_PID", "") in ("", str(os.getpid()))
        watched = address and meant and microseconds.isdecimal() and int(microseconds)
        return cls(address=address, watchdog_seconds=int(microseconds) / 1e6 if watched else None)

    @property
    def listens(self) -> bool:
        return bool(self.address)

    def tell(self, *states: str) -> None:
        """Send assignments, for example `READY=1`. What cannot be sent is not worth dying for."""
        if not self.address:
            return
        # A leading @ stands for the zero byte of an abstract socket.
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(SEND_SECONDS)
                sender.connect(address)
                sender.sendall("\n".join(states).encode())
        except OSError as error:
            log.warning("systemd_not_told", states=states, error=str(error))
