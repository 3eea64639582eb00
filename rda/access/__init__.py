"""Who calls, what they may do, and what they did.

:mod:`~rda.access.admission` and :mod:`~rda.access.policy_config` are what the configuration says;
:mod:`~rda.access.caller` is who calls, as :mod:`rda.proxy.authentication` finds out; :mod:`~rda.access.policy` judges;
:mod:`~rda.access.gate` puts each call before it, and before the records of whose things are
(:mod:`~rda.access.ownership`), of how many each has (:mod:`~rda.access.quotas`) and of what was done
(:mod:`~rda.access.audit`).
"""
