"""Which of a backup's roles to create on a server, and what else differs there. Decides; touches nothing.

Roles that exist are never altered, and none of them may do more afterwards: not by attributes or settings, and not by
becoming a member of what brings more. What they lack is told instead.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from pydantic import SecretStr

from backupd.postgres.role_script import ATTRIBUTES, Globals, Membership, ParameterGrant, Role, RoleSetting

_OPTIONS_SINCE = 16  # memberships have options of their own, and grantors that count
_PARAMETERS_SINCE = 15
_ISO = re.compile(r"-?infinity|\d{4,}-\d\d-\d\d[ T].*")
_LISTED_NAME = re.compile(r'"((?:[^"]|"")*)"|([^\s,"]+)')

# here, not here; on the source, not on the source
_ATTRIBUTES = {
    "SUPERUSER": ("is a superuser", "is no superuser", "was", "was not"),
    "INHERIT": ("inherits what its groups may do", "does not inherit what its groups may do", "did", "did not"),
    "CREATEROLE": ("can create roles", "cannot create roles", "could", "could not"),
    "CREATEDB": ("can create databases", "cannot create databases", "could", "could not"),
    "LOGIN": ("can log in", "cannot log in", "could", "could not"),
    "REPLICATION": ("can replicate", "cannot replicate", "could", "could not"),
    "BYPASSRLS": ("bypasses row-level security", "does not bypass row-level security", "did", "did not"),
}
_POWERS = frozenset(ATTRIBUTES) - {"INHERIT", "LOGIN"}


@dataclass(frozen=True, slots=True)
class PresentRole:
    """A role on the target."""

    attributes: frozenset[str]
    connection_limit: int
    valid_until: str | None  # as the server writes times
    comment: str | None
    settings: Mapping[str, str] = field(repr=False)
    password: SecretStr | None
    mine_to_grant: bool  # the user may make others its members


@dataclass(frozen=True, slots=True)
class Present:
    """What is on the target already, and who asks."""

    major: int
    user: str
    bootstrap: str  # the superuser that initdb made
    roles: Mapping[str, PresentRole]
    memberships: tuple[Membership, ...]
    times: Mapping[str, str]  # a time as the source wrote it, to how this server does
    passwords: bool  # whether the user could read them
    unknown: frozenset[str]  # parameters that this server does not have

    @property
    def superuser(self) -> bool:
        return "SUPERUSER" in self.roles[self.user].attributes


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be created, and what people should know of it."""

    create: tuple[str, ...]  # roles, in the order of the backup
    memberships: tuple[str, ...]  # and other privileges, for people: 'reader is a member of staff'
    differences: tuple[str, ...]  # of roles that exist: they stay as they are
    warnings: tuple[str, ...]  # what will not be as it was on the source
    # What `create` does. Passwords are SecretStr, settings' values have no repr.
    roles: tuple[Role, ...] = field(default=(), repr=False)
    grants: tuple[Membership, ...] = field(default=(), repr=False)
    parameters: tuple[ParameterGrant, ...] = field(default=(), repr=False)


def decide(source: Globals, here: Present, only: Collection[str] | None = None) -> Plan:
    """The plan for all of the source's roles, or for these and the roles that they are members of."""
    wanted = None if only is None else _above(only, _groups(source.memberships))
    return _Planner(source, here, wanted).plan()


class _Planner:
    def __init__(self, source: Globals, here: Present, wanted: frozenset[str] | None) -> None:
        self._here = here
        self._source = source
        self._roles = [role for role in source.roles if wanted is None or role.name in wanted]
        self._new = {role.name: role for role in self._roles if role.name not in here.roles}
        self._wanted = frozenset(role.name for role in self._roles)
        self._groups_here = _groups(here.memberships)
        self._groups_of_new = _groups(filter(self._joins, source.memberships))
        self._admins = {(grant.role, grant.member) for grant in source.memberships if grant.admin}
        self._differences: list[str] = []
        self._warnings: list[str] = []

    def plan(self) -> Plan:
        roles = tuple(map(self._possible, self._new.values()))
        self._compare_roles()
        self._compare_memberships()
        grants = self._grants()
        parameters = tuple(self._parameters())
        self._warn_of_logins(roles)
        lines = [f"{g.member} is a member of {g.role}" + (" and may grant it" if g.admin else "") for g in grants]
        lines += [f"{p.role} has {p.privilege} on the parameter {p.parameter}" for p in parameters]
        return Plan(
            create=tuple(self._new),
            memberships=tuple(dict.fromkeys(lines)),
            differences=tuple(dict.fromkeys(self._differences)),
            warnings=tuple(dict.fromkeys(self._warnings)),
            roles=roles,
            grants=grants,
            parameters=parameters,
        )

    # ---- new roles

    def _possible(self, role: Role) -> Role:
        """The role without what this user may not give or this server does not know."""
        refused = [word for word in ATTRIBUTES if word in role.attributes and not self._may_give(word)]
        if refused:
            self._warnings.append(
                f"role {role.name} is created without {', '.join(refused)}, which {self._here.user} may not give"
            )
        for setting in role.settings:
            if setting.name in self._here.unknown:
                self._warnings.append(
                    f"role {role.name} is created without its setting {setting.name}, which the target does not know"
                )
        if role.valid_until is not None and not _ISO.fullmatch(role.valid_until):
            self._warnings.append(
                f"role {role.name}: its expiry was written in the source's own style of dates; see that it is right"
            )
        settings = tuple(setting for setting in role.settings if setting.name not in self._here.unknown)
        return replace(role, attributes=role.attributes.difference(refused), settings=settings)

    def _may_give(self, attribute: str) -> bool:
        if self._here.superuser or attribute in ("INHERIT", "LOGIN", "CREATEROLE"):
            return True
        if self._here.major < _OPTIONS_SINCE:
            return attribute == "CREATEDB"
        return attribute != "SUPERUSER" and attribute in self._here.roles[self._here.user].attributes

    def _warn_of_logins(self, roles: Iterable[Role]) -> None:
        names = [role.name for role in roles if "LOGIN" in role.attributes and role.password is None]
        if names:
            self._warnings.append(f"the backup has no password of {', '.join(names)}, who may log in")

    # ---- memberships

    def _grants(self) -> tuple[Membership, ...]:
        """What to grant, in an order in which each grantor may already grant."""
        made: dict[tuple[str, str, str | None], Membership] = {}
        admins = {(grant.role, grant.member) for grant in self._here.memberships if grant.admin}
        for wish in self._source.memberships:
            if not self._to_be_made(wish):
                continue
            grant = self._expressible(wish, admins)
            key = grant.role, grant.member, grant.grantor
            made[key] = _merged(made[key], grant) if key in made else grant
            if grant.admin:
                admins.add((grant.role, grant.member))
        if not self._here.superuser and any(map(self._another_grantor, self._source.memberships)):
            self._warnings.append(f"memberships will be granted by {self._here.user}, whoever did so on the source")
        return tuple(made.values())

    def _another_grantor(self, grant: Membership) -> bool:
        # What another than initdb's superuser granted rests on an ADMIN OPTION of theirs.
        return self._touches_new(grant) and (grant.role, grant.grantor) in self._admins

    def _touches_new(self, grant: Membership) -> bool:
        return grant.role in self._new or grant.member in self._new

    def _to_be_made(self, grant: Membership) -> bool:
        if not self._touches_new(grant):
            return False
        if grant.member not in self._new and grant.member not in self._here.roles:
            return False  # not among those asked for
        if grant.role not in self._new and grant.role not in self._here.roles:
            self._warnings.append(f"{grant.member} will not be a member of {grant.role}, which is not there")
            return False
        if not self._may_grant(grant.role):
            self._warnings.append(
                f"{grant.member} will not be a member of {grant.role}, which {self._here.user} may not grant"
            )
            return False
        if grant.member in self._new and (more := self._more_than_there(grant.role)):
            self._differences.append(
                f"role {grant.member}: is not made a member of {grant.role}, which here brings {', '.join(more)} and"
                " did not on the source"
            )
            return False
        gains = self._gains(grant) if grant.member not in self._new else []
        if gains:
            self._differences.append(
                f"role {grant.member}: is not a member of {grant.role} here, was on the source; left so, since that"
                f" would bring it {', '.join(gains)}"
            )
        return not gains

    def _more_than_there(self, role: str) -> list[str]:
        """What an existing role would bring a new member here that its namesake did not on the source."""
        if role not in self._here.roles:
            return []
        here = _above([role], self._groups_here)
        there = _above([role], _groups(self._source.memberships))
        known = {each.name: each for each in self._source.roles}
        has = {word for name in here if name in self._here.roles for word in self._here.roles[name].attributes}
        had = {word for name in there if name in known for word in known[name].attributes}
        # What a predefined role brings with it is the same everywhere, and in nobody's dump.
        there |= _above((name for name in there if name.startswith("pg_")), self._groups_here)
        return sorted((has - had) & _POWERS) + sorted(n for n in here - there if n.startswith("pg_"))

    def _may_grant(self, role: str) -> bool:
        return role in self._new or (role in self._here.roles and self._here.roles[role].mine_to_grant)

    def _joins(self, grant: Membership) -> bool:
        """Whether a new role becomes a member of something by it."""
        return grant.member in self._new and self._may_grant(grant.role)

    def _gains(self, grant: Membership) -> list[str]:
        """What an existing member could do beyond what it can now, by way of a new role."""
        if "SUPERUSER" in self._here.roles[grant.member].attributes:
            return []
        reached = _above([grant.role], self._groups_of_new)
        gains = {name for name in reached - _above([grant.member], self._groups_here) if name in self._here.roles}
        powers = {
            word
            for name in reached & set(self._new)
            for word in self._new[name].attributes & _POWERS
            if self._may_give(word)
        }
        parameters = {p.parameter for p in self._source.parameters if p.role in reached and p.role in self._new}
        return sorted(powers) + sorted(gains) + sorted(parameters)

    def _expressible(self, grant: Membership, admins: Collection[tuple[str, str]]) -> Membership:
        """The grant as this server and this user can make it."""
        here = self._here
        if here.major < _OPTIONS_SINCE:
            held = self._new.get(grant.member) or here.roles[grant.member]
            if not grant.set_role or grant.inherit not in (None, "INHERIT" in held.attributes):
                self._warnings.append(
                    f"the membership of {grant.member} in {grant.role} loses its INHERIT and SET options, which"
                    f" PostgreSQL {here.major} does not have"
                )
            return replace(grant, inherit=None, set_role=True, grantor=None)
        if not here.superuser:
            # Whoever creates a role has ADMIN OPTION on it from initdb's superuser, and can't give it back to them.
            admin = grant.admin and grant.member not in (here.user, here.bootstrap)
            return replace(grant, admin=admin, grantor=None)
        if grant.grantor is None or (grant.role, grant.grantor) in admins:
            return grant
        if self._another_grantor(grant):
            self._warnings.append(
                f"the membership of {grant.member} in {grant.role} will not be granted by {grant.grantor}, who may not"
                " do so here"
            )
        return replace(grant, grantor=None)

    def _parameters(self) -> Iterator[ParameterGrant]:
        for grant in self._source.parameters:
            if grant.role not in self._new:
                continue
            privilege = f"{grant.privilege} on the parameter {grant.parameter}"
            if self._here.major < _PARAMETERS_SINCE:
                self._warnings.append(
                    f"role {grant.role} is created without {privilege}: PostgreSQL {self._here.major} has no such"
                    " privileges"
                )
            elif not self._here.superuser:
                self._warnings.append(f"role {grant.role} is created without {privilege}: only a superuser may give it")
            else:
                yield grant

    # ---- roles that exist

    def _compare_roles(self) -> None:
        for role in self._roles:
            if role.name in self._here.roles:
                there = self._here.roles[role.name]
                self._differences += [f"role {role.name}: {line}" for line in self._compared(role, there)]

    def _compared(self, role: Role, there: PresentRole) -> Iterator[str]:
        for word, (has, lacks, did, did_not) in _ATTRIBUTES.items():
            if word in there.attributes - role.attributes:
                yield f"{has} here, {did_not} on the source"
            elif word in role.attributes - there.attributes:
                yield f"{lacks} here, {did} on the source"
        if role.connection_limit != there.connection_limit:
            yield f"has the connection limit {there.connection_limit} here, {role.connection_limit} on the source"
        until = role.valid_until and self._here.times.get(role.valid_until, role.valid_until)
        if until != there.valid_until:
            yield f"is valid until {there.valid_until or 'infinity'} here, {until or 'infinity'} on the source"
        if self._here.passwords and role.password is not None and role.password != there.password:
            yield "has no password here" if there.password is None else "its password was set otherwise here"
        if role.comment != there.comment:
            yield "its comment differs"
        yield from _compared_settings(role.settings, there.settings)

    def _compare_memberships(self) -> None:
        present = _by_pair(self._here.memberships)
        for (role, member), wish in _by_pair(self._source.memberships).items():
            if role not in self._here.roles or member not in self._here.roles or member not in self._wanted:
                continue
            if (role, member) not in present:
                self._differences.append(f"role {member}: is not a member of {role} here, was on the source")
                continue
            found = present[role, member]
            if wish.admin != found.admin:
                how = "may grant it here, could not" if found.admin else "may not grant it here, could"
                self._differences.append(f"role {member}: a member of {role}, {how} on the source")
            if self._here.major >= _OPTIONS_SINCE and (
                wish.set_role != found.set_role or wish.inherit not in (None, found.inherit)
            ):
                self._differences.append(f"role {member}: its membership in {role} has other INHERIT or SET options")


def _groups(memberships: Iterable[Membership]) -> dict[str, set[str]]:
    """Each member's roles."""
    found: dict[str, set[str]] = {}
    for grant in memberships:
        found.setdefault(grant.member, set()).add(grant.role)
    return found


def _above(names: Iterable[str], groups: Mapping[str, set[str]]) -> frozenset[str]:
    """These roles and all that they are members of, through others too."""
    found = set(names)
    waiting = list(found)
    while waiting:
        fresh = groups.get(waiting.pop(), set()) - found
        found |= fresh
        waiting += fresh
    return frozenset(found)


def _merged(one: Membership, other: Membership) -> Membership:
    """Two grants by the same grantor are one, that allows what either does."""
    inherit = None if one.inherit is None or other.inherit is None else one.inherit or other.inherit
    return replace(one, admin=one.admin or other.admin, inherit=inherit, set_role=one.set_role or other.set_role)


def _by_pair(memberships: Iterable[Membership]) -> dict[tuple[str, str], Membership]:
    """What each pair has in effect, whoever granted it."""
    found: dict[tuple[str, str], Membership] = {}
    for grant in memberships:
        key = grant.role, grant.member
        found[key] = _merged(found[key], grant) if key in found else grant
    return found


def _compared_settings(source: Iterable[RoleSetting], there: Mapping[str, str]) -> Iterator[str]:
    """Names only: a value may be a secret."""
    wanted = {setting.name: setting.values for setting in source}
    for name in dict.fromkeys((*wanted, *there)):
        if name not in there:
            yield f"its setting {name} is missing here"
        elif name not in wanted:
            yield f"has a setting {name} here, had none on the source"
        elif wanted[name] not in ((there[name],), _listed(there[name])):
            yield f"its setting {name} is another here"


def _listed(value: str) -> tuple[str, ...]:
    """A stored list of names, such as search_path: `"$user", public`."""
    return tuple(plain or quoted.replace('""', '"') for quoted, plain in _LISTED_NAME.findall(value))
