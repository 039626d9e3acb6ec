"""openapi.json describes every route, and healthz answers."""

from tests.tracker.api.test_matrix import MATRIX
from tracker.api import schema


def test_every_route_and_method_is_described(nobody):
    answer = nobody.get("openapi.json")
    assert answer.status_code == 200
    found = answer.json()
    described = {(method.upper(), path) for path, operations in found["paths"].items() for method in operations}
    for method, route in MATRIX:
        path = "/api/v1/" + route.replace("<str:", "{").replace(">", "}")
        if route != "openapi.json":
            assert (method, path) in described, (method, path)


def test_it_names_the_ways_to_log_in_and_the_one_error_shape():
    found = schema.document()
    assert set(found["components"]["securitySchemes"]) == {"token", "session"}
    ids = [operation["operationId"] for operations in found["paths"].values() for operation in operations.values()]
    assert len(ids) == len(set(ids))
    for operations in found["paths"].values():
        for operation in operations.values():
            assert "default" in operation["responses"]


def test_healthz_needs_no_login(client, db):
    answer = client.get("/healthz")
    assert (answer.status_code, answer.json()["status"]) == (200, "ok")
    assert client.post("/healthz").status_code in (403, 405)
