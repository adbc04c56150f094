"""How tokens are checked, from the settings: by a secret of this installation, or by the keys of a file or a URL."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gateway.key_source import KeySource, read_file, read_url
from gateway.settings import Settings
from gateway.tokens import TokenChecker
from gateway.verification_keys import VerificationKeys
from mesh.metrics import Metrics
from mesh.settings import SettingsError

#: How often the file is looked at, s. It is small and near.
_FILE_PERIOD_S = 2.0


@dataclass(frozen=True)
class TokenSetup:
    """The checker, and, where there are keys that can change, their source: ``keep_current`` must be running."""

    checker: TokenChecker
    source: KeySource | None


async def set_up_tokens(settings: Settings, metrics: Metrics) -> TokenSetup:
    """Makes it. Raises SettingsError when the file is no key set that can verify tokens.

    A URL that does not answer now will later: until then every token is answered UNAVAILABLE.
    """
    if settings.jwt_secret:
        return TokenSetup(_checker(settings.jwt_secret, settings), None)
    keys = VerificationKeys()
    checker = _checker(keys, settings)
    by_file = bool(settings.jwks_file)
    source = KeySource(
        keys,
        partial(read_file, Path(settings.jwks_file)) if by_file else partial(read_url, settings.jwks_url),
        name=settings.jwks_file or settings.jwks_url,
        period_s=_FILE_PERIOD_S if by_file else settings.jwks_refresh_s,
        age_max_s=settings.jwks_age_max_s,
        changed=checker.forget,
    )
    why_not = await source.refresh()
    if why_not and by_file:
        raise SettingsError(f"GATEWAY_JWKS_FILE: {settings.jwks_file}: {why_not}")
    metrics.gauge("gateway_token_keys", "Keys that tokens may be signed with; 0: none is known", lambda: len(keys))
    metrics.gauge("gateway_token_keys_age_seconds", "Time since the keys were read", lambda: source.age_s)
    metrics.totals("gateway_token_keys_failures", "Readings of the keys that failed", (), lambda: {(): source.failures})
    return TokenSetup(checker, source)


def _checker(keys: str | VerificationKeys, settings: Settings) -> TokenChecker:
    return TokenChecker(
        keys, cache_max=settings.tokens_cache_max, issuer=settings.jwt_issuer, audience=settings.jwt_audience
    )
