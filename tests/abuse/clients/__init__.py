"""Hostile clients of the REST API."""

from tests.abuse.clients import access, bodies, floods, injection, values

CASES = (*access.CASES, *injection.CASES, *bodies.CASES, *values.CASES, *floods.CASES)
