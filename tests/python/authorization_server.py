"""An OAuth 2.1 authorization server that approves everything, for tests on loopback.

usage: authorization_server.py READY CLIENT_ID CLIENT_SECRET

It writes its issuer URL to the file READY. Clients register themselves (RFC 7591), get codes with PKCE, and tokens that
are bound to the `resource` they name (RFC 8707), signed with ES256. The client CLIENT_ID gets tokens for itself
(client_credentials). Every token has the scopes that were asked for, or else `tools`.
"""

import base64
import hashlib
import http.server
import json
import secrets
import sys
import threading
import time
import urllib.parse

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

SCOPES = ["tools", "files"]
LIFETIME = 600


def digest(verifier: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


class Refused(Exception):
    """An error of RFC 6749, section 5.2."""


class Issuer:
    def __init__(self, url: str, client_id: str, client_secret: str):
        self.url = url
        self.client = (client_id, client_secret)
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.clients, self.codes, self.refresh = {}, {}, {}
        self.lock = threading.Lock()

    def metadata(self) -> dict:
        return {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "registration_endpoint": f"{self.url}/register",
            "jwks_uri": f"{self.url}/jwks",
            "scopes_supported": SCOPES,
            "response_types_supported": ["code"],
            "grant_types_supported": ["authorization_code", "refresh_token", "client_credentials"],
            "token_endpoint_auth_methods_supported": ["none", "client_secret_basic", "client_secret_post"],
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": True,
        }

    def jwks(self) -> dict:
        key = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self.key.public_key()))
        return {"keys": [{**key, "kid": "1", "use": "sig", "alg": "ES256"}]}

    def register(self, request: dict) -> dict:
        client = {**request, "client_id": secrets.token_urlsafe(12), "token_endpoint_auth_method": "none"}
        self.clients[client["client_id"]] = client
        return client

    def authorize(self, query: dict) -> str:
        """The URL to which the browser is sent."""
        client = self.clients.get(query.get("client_id"))
        target = query.get("redirect_uri")
        if client is None or target not in client.get("redirect_uris", []):
            raise Refused("invalid_request")
        answer = {"iss": self.url, "state": query.get("state", "")}
        if not query.get("code_challenge") or query.get("code_challenge_method") != "S256":
            answer |= {"error": "invalid_request", "error_description": "PKCE with S256 is required"}
        else:
            code = secrets.token_urlsafe(16)
            with self.lock:
                self.codes[code] = query
            answer["code"] = code
        return f"{target}{'&' if '?' in target else '?'}{urllib.parse.urlencode(answer)}"

    def exchange(self, form: dict, basic: tuple | None) -> dict:
        match form.get("grant_type"):
            case "authorization_code":
                with self.lock:
                    grant = self.codes.get(form.get("code"))
                    if grant is None or grant["client_id"] != form.get("client_id"):
                        raise Refused("invalid_grant")
                    if grant["redirect_uri"] != form.get("redirect_uri"):
                        raise Refused("invalid_grant")
                    if digest(form.get("code_verifier", "")) != grant["code_challenge"]:
                        raise Refused("invalid_grant")
                    del self.codes[form["code"]]
                grant = {"client_id": grant["client_id"], "scope": grant.get("scope", ""),
                         "resource": form.get("resource") or grant.get("resource")}
                return self.issue(grant, "alice", form.get("resource"))
            case "refresh_token":
                with self.lock:
                    grant = self.refresh.pop(form.get("refresh_token"), None)
                if grant is None:
                    raise Refused("invalid_grant")
                return self.issue(grant, "alice", form.get("resource"))
            case "client_credentials":
                if (basic or (form.get("client_id"), form.get("client_secret"))) != self.client:
                    raise Refused("invalid_client")
                return self.token({"client_id": self.client[0], "scope": form.get("scope", "")}, self.client[0],
                                  form.get("resource"))
        raise Refused("unsupported_grant_type")

    def issue(self, grant: dict, subject: str, resource: str | None) -> dict:
        refresh = secrets.token_urlsafe(16)
        with self.lock:
            self.refresh[refresh] = grant
        return {**self.token(grant, subject, resource or grant.get("resource")), "refresh_token": refresh}

    def token(self, grant: dict, subject: str, resource: str | None) -> dict:
        now, scope = int(time.time()), grant["scope"] or "tools"
        claims = {"iss": self.url, "sub": subject, "aud": resource or self.url, "client_id": grant["client_id"],
                  "scope": scope, "iat": now, "exp": now + LIFETIME, "jti": secrets.token_urlsafe(8)}
        token = jwt.encode(claims, self.key, algorithm="ES256", headers={"kid": "1", "typ": "at+jwt"})
        return {"access_token": token, "token_type": "Bearer", "expires_in": LIFETIME, "scope": scope}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    issuer: Issuer

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        match url.path:
            case "/.well-known/oauth-authorization-server" | "/.well-known/openid-configuration":
                self.answer(200, self.issuer.metadata())
            case "/jwks":
                self.answer(200, self.issuer.jwks())
            case "/authorize":
                query = dict(urllib.parse.parse_qsl(url.query))
                try:
                    self.answer(302, {}, location=self.issuer.authorize(query))
                except Refused as error:
                    self.answer(400, {"error": str(error)})
            case _:
                self.answer(404, {"error": "not_found"})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        match self.path:
            case "/register":
                self.answer(201, self.issuer.register(json.loads(body)))
            case "/token":
                form = dict(urllib.parse.parse_qsl(body.decode()))
                try:
                    self.answer(200, self.issuer.exchange(form, self.basic()))
                except Refused as error:
                    self.answer(401 if str(error) == "invalid_client" else 400, {"error": str(error)})
            case _:
                self.answer(404, {"error": "not_found"})

    def basic(self) -> tuple | None:
        scheme, _, value = self.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return None
        name, _, secret = base64.b64decode(value).decode().partition(":")
        return urllib.parse.unquote_plus(name), urllib.parse.unquote_plus(secret)

    def answer(self, status: int, document: dict, location: str | None = None):
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.send_header("cache-control", "no-store")
        if location:
            self.send_header("location", location)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


def main(ready: str, client_id: str, client_secret: str):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{server.server_address[1]}"
    Handler.issuer = Issuer(url, client_id, client_secret)
    with open(ready, "w") as file:
        file.write(f"{url}\n")
    server.serve_forever()


main(*sys.argv[1:])
