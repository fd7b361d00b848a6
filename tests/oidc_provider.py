"""A small OpenID Connect provider over real HTTP, with keys of its own, for the tests of sign-in by one.

It is strict where real ones are: client, secret, address to go back to, PKCE, codes that work once. What it says can be
bent, for the tests of what must be refused.
"""

import base64
import gzip
import hashlib
import json
import secrets
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jws
from joserfc.jwk import RSAKey

CLIENT, SECRET = "nudge-app", "the secret of the app"


class FakeProvider:
    """Serves from the start. `people`: claims by login; a request of /authorize says in X-Login who it is.

    `bend(claims, header)` changes an ID token before it is signed; `signed(header, claims)` signs it otherwise.
    """

    def __init__(self):
        self.people = {}
        self.userinfo = {}
        self.userinfo_of = {}  # by login
        self.scopes = None  # those that the app may ask for; None: any
        self.names_itself = True  # whether its answers say whose they are (RFC 9207)
        self.described = {}  # what its description of itself has in place of the right things
        self.calls = []
        self.back = []  # addresses that it sends people back to
        self.answers = threading.Event()  # while it is not set, what is asked gets no answer
        self.broken = set()  # paths that it answers with 500
        self.packs = set()  # paths whose answers it packs, though nobody asked for that
        self.denies = None
        self.reset()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(self))
        self.server.daemon_threads = True
        self.issuer = f"http://127.0.0.1:{self.server.server_port}/realm"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        self.codes, self.tokens = {}, {}
        self.new_key("first")

    def reset(self):
        """Nothing is bent any more."""
        self.bend = lambda claims, header: None
        self.signed = None
        self.denies = None
        self.described, self.broken, self.userinfo, self.packs = {}, set(), {}, set()
        self.answers.set()
        self.userinfo_of = {}

    def new_key(self, name, **more):
        """Sign with another key from now on."""
        self.key = RSAKey.generate_key(2048, {"kid": name, "use": "sig", **more})

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    # -- what it answers

    def description(self):
        right = {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/jwks",
            "userinfo_endpoint": f"{self.issuer}/userinfo",
            "end_session_endpoint": f"{self.issuer}/end",
            "id_token_signing_alg_values_supported": ["none", "HS256", "RS256"],
            "authorization_response_iss_parameter_supported": True,
        }
        return {name: value for name, value in {**right, **self.described}.items() if value is not None}

    def authorize(self, asked, login):
        """The address to which the browser goes then."""
        assert asked["client_id"] == CLIENT and asked["response_type"] == "code" and "openid" in asked["scope"].split()
        assert asked["redirect_uri"] in self.back, asked["redirect_uri"]
        assert asked["code_challenge_method"] == "S256" and len(asked["nonce"]) >= 16 and len(asked["state"]) >= 16
        assert self.scopes is None or set(asked["scope"].split()) <= self.scopes, asked["scope"]
        answer = {"state": asked["state"], **({"iss": self.issuer} if self.names_itself else {})}
        if self.denies:
            return f"{asked['redirect_uri']}?{urlencode({**answer, 'error': self.denies})}"
        code = secrets.token_urlsafe(8)
        self.codes[code] = (asked, login)
        return f"{asked['redirect_uri']}?{urlencode({**answer, 'code': code})}"

    def token(self, form, authorization):
        """Status and body. A code works once, for whom it was made."""
        expected = "Basic " + base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        if authorization != expected:
            return 401, {"error": "invalid_client"}
        asked, login = self.codes.pop(form.get("code"), (None, None))
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        if not asked or asked["redirect_uri"] != form["redirect_uri"] or asked["code_challenge"] != challenge:
            return 400, {"error": "invalid_grant"}
        now = int(time.time())
        claims = {"iss": self.issuer, "aud": CLIENT, "iat": now, "exp": now + 300, "nonce": asked["nonce"]}
        claims |= {"sub": f"id of {login}", **self.people.get(login, {})}
        header = {"alg": "RS256", "kid": self.key.kid}
        self.bend(claims, header)
        sign = self.signed or (lambda header, claims: signed_by(self.key, header, claims))
        access = secrets.token_urlsafe(8)
        self.tokens[access] = {"sub": claims.get("sub"), **self.userinfo, **self.userinfo_of.get(login, {})}
        return 200, {"access_token": access, "token_type": "Bearer", "id_token": sign(header, claims)}


def signed_by(key, header, claims, algorithms=("RS256", "HS256")):
    return jws.serialize_compact(header, json.dumps(claims), key, algorithms=list(algorithms))


def handler_of(provider):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            parts = urlsplit(self.path)
            path = parts.path.removeprefix("/realm")
            provider.calls.append(path)
            provider.answers.wait()
            if path in provider.broken:
                return self.answer(500, {})
            if path == "/.well-known/openid-configuration":
                return self.answer(200, provider.description())
            if path == "/jwks":
                return self.answer(200, {"keys": [provider.key.as_dict(private=False)]})
            if path == "/authorize":
                asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
                return self.answer(302, {}, provider.authorize(asked, self.headers.get("X-Login", "ann")))
            if path == "/userinfo":
                found = provider.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
                return self.answer(200 if found else 401, found or {})
            return self.answer(404, {})

        def do_POST(self):
            provider.calls.append("/token")
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            if "/token" in provider.broken:
                return self.answer(500, {})
            form = {name: values[0] for name, values in parse_qs(body).items()}
            return self.answer(*provider.token(form, self.headers.get("Authorization")))

        def answer(self, status, body, place=""):
            content = json.dumps(body).encode()
            self.send_response(status)
            packed = urlsplit(self.path).path.removeprefix("/realm") in provider.packs
            if packed or "gzip" in self.headers.get("Accept-Encoding", ""):
                content = gzip.compress(content)
                self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            if place:
                self.send_header("Location", place)
            self.end_headers()
            self.wfile.write(content)

    return Handler
