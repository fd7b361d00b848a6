"""A provider that signs people in, by OpenID Connect: the way there, and what it says of whoever comes back.

Authlib's client speaks the protocol: authorization code with PKCE (S256), state and nonce, ID token against the keys of
the provider. Added here is what it leaves open: the provider must be the one in the settings, and sign with a key that
is its own (`provider_setup.py`); a key that has changed is read again; nobody waits long for a provider that is down,
which is asked again with growing pauses. Who then may come in is `provider_people.py`'s.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx2
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.starlette_client import StarletteOAuth2App
from authlib.oidc.core import CodeIDToken
from joserfc.errors import BadSignatureError, JoseError

from playground.people.attempts import Attempt
from playground.people.provider_people import SUBJECT_CHARS, Claims, deciding_claims, has_organisations
from playground.people.provider_setup import bound, checked_secret, known_metadata
from playground.people.refusals import WrongSignIn
from playground.settings.operating import OIDCSettings
from playground.system.messages import UserFacingError

log = logging.getLogger(__name__)

PATIENCE = 10.0  # seconds that the provider may take for one answer, or for all of a sign-in
FRESH = 300.0  # seconds for which what the provider says of itself, and its keys, are not asked again
LONGEST_PAUSE = 60.0  # seconds between two tries of a provider that is down
CLOCK_SKEW = 60  # seconds by which its clock may differ
NO_ANSWER = (ValueError, TypeError, KeyError, AttributeError)  # what is no JSON, or not of the right form
TROUBLE = (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError, *NO_ANSWER)


class ProviderDown(UserFacingError):
    """The provider does not answer, or not as one; the log has the reason."""


class Provider:
    """`clock`: seconds, of any beginning."""

    def __init__(self, oidc: OIDCSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self.oidc = oidc
        self.name = oidc.name or urlsplit(oidc.issuer).netloc
        self._secret = checked_secret(oidc)
        self._clock = clock
        self._tls = httpx2.create_ssl_context()  # once: it reads all certificates
        self._client: StarletteOAuth2App | None = None
        self._fresh_until = 0.0
        self._failures = 0
        self._next_try = 0.0
        self._asking = asyncio.Lock()
        self._waiting: set[asyncio.Future[StarletteOAuth2App]] = set()

    # -- a sign-in

    async def begin(self, back: str, query: str, asks_who: bool = False) -> tuple[str, Attempt]:
        """The address at the provider by which a sign-in begins, and what its end is compared with. `back`: where the
        provider sends the browser then; `query`: of the page that was asked for. `asks_who`: whether it asks which
        account it is, where it knows one already. ProviderDown where it is not to be had.
        """
        client = await self._ready()
        attempt = Attempt.new(back, query)
        asked = {"state": attempt.state, "nonce": attempt.nonce, "code_verifier": attempt.verifier}
        if asks_who:
            # at Hugging Face it is where people choose what of their organisations the app sees
            asked["prompt"] = "consent" if has_organisations(self.oidc) else "select_account"
        made = await client.create_authorization_url(back, **asked)
        return made["url"], attempt

    async def finish(self, code: str, attempt: Attempt) -> Claims:
        """What the provider says of whom it has signed in, for the code that the browser has brought.

        WrongSignIn where the code or the ID token is not right, ProviderDown where the provider is not to be had.
        """
        client = await self._ready()
        try:
            async with asyncio.timeout(PATIENCE):
                token = await client.fetch_access_token(attempt.back, code=code, code_verifier=attempt.verifier)
                claims = await self._verified(client, token, attempt.nonce)
                return await self._completed(client, token, claims)
        except AuthlibBaseError as error:
            log.warning("the provider takes no code: %s", str(error.error)[:100])
            raise WrongSignIn("{name} does not confirm this sign-in. Sign in again.", name=self.name) from None
        except (httpx2.HTTPError, TimeoutError) as error:  # of this attempt alone: nobody else waits for it
            log.warning("the provider does not answer a sign-in: %s", type(error).__name__)
            raise self._unavailable() from None
        except (JoseError, *NO_ANSWER) as error:
            log.warning("the provider's answer is refused: %s: %s", type(error).__name__, str(error)[:200])
            raise WrongSignIn("{name} does not confirm this sign-in. Sign in again.", name=self.name) from None

    def is_from(self, issuer: str | None) -> bool:
        """Whether an answer that names this issuer is the provider's (RFC 9207); many name none."""
        if issuer is None:
            metadata = self._client.server_metadata if self._client else {}
            return not metadata.get("authorization_response_iss_parameter_supported")
        return issuer == self.oidc.issuer

    async def sign_out_url(self, back: str) -> str | None:
        """The address at which somebody signs out of the provider too; None where it has none, or is down."""
        try:
            client = await self._ready()
            if "end_session_endpoint" not in client.server_metadata:
                return None
            made = await client.create_logout_url(back, client_id=self.oidc.client_id)
        except ProviderDown:
            return None
        return str(made["url"])

    # -- is it there

    async def check(self, patience: float) -> None:
        """ProviderDown where the provider is not to be had now, or takes longer than so many seconds to say it."""
        asked = asyncio.ensure_future(self._ready())
        done, _ = await asyncio.wait([asked], timeout=patience)
        if not done:
            self._waiting.add(asked)  # it goes on, for those who ask later
            asked.add_done_callback(self._answered)
            raise self._unavailable()
        asked.result()

    def _answered(self, asked: "asyncio.Future[StarletteOAuth2App]") -> None:
        self._waiting.discard(asked)
        if not asked.cancelled():
            asked.exception()  # taken notice of: it is in the log

    async def _ready(self) -> StarletteOAuth2App:
        """A client that knows the provider's endpoints and keys. One request asks for all who wait."""
        async with self._asking:
            now = self._clock()
            if self._client and now < self._fresh_until:
                return self._client
            if now < self._next_try:
                raise self._unavailable()
            try:
                async with asyncio.timeout(PATIENCE):
                    self._client = await self._discovered()
            except (*TROUBLE, JoseError) as error:
                raise self._down(error) from None
            if self._failures:
                log.info("the provider answers again")
            self._failures = 0
            self._fresh_until = self._clock() + FRESH
            return self._client

    async def _discovered(self) -> StarletteOAuth2App:
        """ValueError where the provider is another one, or has no endpoint that can be used."""
        oidc = self.oidc
        options = {
            "scope": oidc.scopes,
            "code_challenge_method": "S256",
            "timeout": PATIENCE,
            "verify": self._tls,
            "event_hooks": {"response": [bound]},
            "headers": {"accept-encoding": "identity"},
        }
        client = StarletteOAuth2App(
            None,  # the attempts are kept elsewhere
            client_id=oidc.client_id,
            client_secret=self._secret or None,
            client_kwargs=options,
            server_metadata_url=f"{oidc.issuer.rstrip('/')}/.well-known/openid-configuration",
        )
        said = dict(await client.load_server_metadata())
        client.server_metadata = known_metadata(said, oidc.issuer)
        methods = said.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
        if self._secret and "client_secret_basic" not in methods and "client_secret_post" in methods:
            options["token_endpoint_auth_method"] = "client_secret_post"
        await client.fetch_jwk_set()
        return client

    def _down(self, error: Exception) -> ProviderDown:
        """What is raised after a failure; the next try is after a pause."""
        self._client = None
        self._failures += 1
        self._next_try = self._clock() + min(2.0 ** min(self._failures - 1, 10), LONGEST_PAUSE)
        level = logging.WARNING if self._failures == 1 else logging.DEBUG
        log.log(
            level, "the provider %s cannot be used: %s: %s", self.oidc.issuer, type(error).__name__, first_line(error)
        )
        return self._unavailable()

    def _unavailable(self) -> ProviderDown:
        return ProviderDown(
            "Sign-in with {name} is not available now. Try again in a minute. Whoever is signed in stays so.",
            name=self.name,
        )

    # -- what it says of a person

    async def _verified(self, client: StarletteOAuth2App, token: Mapping[str, Any], nonce: str) -> dict[str, Any]:
        """The claims of the ID token. JoseError where it is not the provider's, for this app and this attempt."""
        if not isinstance(token.get("id_token"), str):
            raise JoseError("there is no ID token")
        try:
            claims = await self._parsed(client, token, nonce)
        except BadSignatureError:  # a new key with the name of the one before, or with none
            await client.fetch_jwk_set(force=True)
            claims = await self._parsed(client, token, nonce)
        subject = claims["sub"]
        if not isinstance(subject, str) or not 0 < len(subject) <= SUBJECT_CHARS:
            raise JoseError("the subject is no text")
        return claims

    async def _parsed(self, client: StarletteOAuth2App, token: Mapping[str, Any], nonce: str) -> dict[str, Any]:
        expected = {
            "iss": {"essential": True, "value": self.oidc.issuer},
            "aud": {"essential": True, "value": self.oidc.client_id},
        }
        try:
            found = await client.parse_id_token(token, nonce, expected, CodeIDToken, leeway=CLOCK_SKEW)
        except NO_ANSWER as error:  # of a token that is none
            raise JoseError(f"{type(error).__name__} while it was read") from None
        return dict(found)

    async def _completed(
        self, client: StarletteOAuth2App, token: Mapping[str, Any], claims: dict[str, Any]
    ) -> dict[str, Any]:
        """The claims, with what only the provider's userinfo has of those that the settings read. ProviderDown where
        it cannot be read and may have what lets somebody in, JoseError where it is of somebody else then.
        """
        oidc = self.oidc
        groups, roles = oidc.groups_claim.split(".")[0], oidc.role_claim.split(".")[0]
        wanted = {oidc.name_claim, "email", "email_verified", groups, roles} - {""}
        if wanted <= claims.keys() or "userinfo_endpoint" not in client.server_metadata:
            return claims
        decides = bool(deciding_claims(oidc) - claims.keys())
        try:
            more = dict(await client.userinfo(token=token))
        except (*TROUBLE, AuthlibBaseError) as error:
            log.warning("the provider's userinfo cannot be read: %s", type(error).__name__)
            if decides:
                raise self._unavailable() from None
            return claims
        if more.get("sub") != claims["sub"]:
            if decides:
                raise JoseError("its userinfo is of somebody else")
            log.warning("the provider's userinfo is of somebody else")
            return claims
        if claims.get("email", more.get("email")) != more.get("email"):
            more.pop("email_verified", None)  # it is said of another one
        return {**more, **claims}


def first_line(error: Exception) -> str:
    """What an error says, for the log: on one line, and no longer than that needs."""
    return next(iter(str(error).splitlines()), "")[:300]
