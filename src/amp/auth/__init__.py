"""Who asks: a token that was given, or the login of this user, shared with Amp's other tools and renewed in time."""

from __future__ import annotations

from amp.auth.login import Login, LoginFile
from amp.auth.service import AuthService
from amp.auth.tokens import FixedToken, LoginToken, Token

__all__ = ['AuthService', 'FixedToken', 'Login', 'LoginFile', 'LoginToken', 'Token']
