"""How a refusal travels through what dials: see `gateway.policy.rules` for who decides."""

from __future__ import annotations

from gateway.errors import GatewayError


class PermissionDenied(GatewayError):
    """Policy said no. The message is the verdict's reason, which names the rule."""
