"""`gateway serve` as one object; its parts are in `gateway.serving`."""

from gateway.serving.server import Server
from gateway.serving.shared import ServerOptions

__all__ = ["Server", "ServerOptions"]
