"""The parameters of scikit-learn's estimators, so that a wrong name is refused before a job is queued.

The library itself is not imported for that: it takes a second, and fifty megabytes of a process that serves. A test
holds this list against the library that is installed.
"""

from __future__ import annotations

_TREE = """
ccp_alpha max_depth max_features max_leaf_nodes min_impurity_decrease min_samples_leaf min_samples_split
min_weight_fraction_leaf criterion random_state
"""
_KNOWN = """
RandomForestClassifier: TREE bootstrap class_weight max_samples monotonic_cst n_estimators n_jobs oob_score verbose
    warm_start
RandomForestRegressor: TREE bootstrap max_samples monotonic_cst n_estimators n_jobs oob_score verbose warm_start
ExtraTreesClassifier: TREE bootstrap class_weight max_samples monotonic_cst n_estimators n_jobs oob_score verbose
    warm_start
ExtraTreesRegressor: TREE bootstrap max_samples monotonic_cst n_estimators n_jobs oob_score verbose warm_start
GradientBoostingClassifier: TREE init learning_rate loss n_estimators n_iter_no_change subsample tol
    validation_fraction verbose warm_start
GradientBoostingRegressor: TREE alpha init learning_rate loss n_estimators n_iter_no_change subsample tol
    validation_fraction verbose warm_start
HistGradientBoostingClassifier: categorical_features class_weight early_stopping interaction_cst l2_regularization
    learning_rate loss max_bins max_depth max_features max_iter max_leaf_nodes min_samples_leaf monotonic_cst
    n_iter_no_change random_state scoring tol validation_fraction verbose warm_start
HistGradientBoostingRegressor: categorical_features early_stopping interaction_cst l2_regularization learning_rate
    loss max_bins max_depth max_features max_iter max_leaf_nodes min_samples_leaf monotonic_cst n_iter_no_change
    quantile random_state scoring tol validation_fraction verbose warm_start
DecisionTreeClassifier: TREE class_weight monotonic_cst splitter
DecisionTreeRegressor: TREE monotonic_cst splitter
KNeighborsClassifier: algorithm leaf_size metric metric_params n_jobs n_neighbors p weights
KNeighborsRegressor: algorithm leaf_size metric metric_params n_jobs n_neighbors p weights
MLPClassifier: activation alpha batch_size beta_1 beta_2 early_stopping epsilon hidden_layer_sizes learning_rate
    learning_rate_init max_fun max_iter momentum n_iter_no_change nesterovs_momentum power_t random_state shuffle
    solver tol validation_fraction verbose warm_start
MLPRegressor: activation alpha batch_size beta_1 beta_2 early_stopping epsilon hidden_layer_sizes learning_rate
    learning_rate_init loss max_fun max_iter momentum n_iter_no_change nesterovs_momentum power_t random_state shuffle
    solver tol validation_fraction verbose warm_start
SVC: C break_ties cache_size class_weight coef0 decision_function_shape degree gamma kernel max_iter probability
    random_state shrinking tol verbose
SVR: C cache_size coef0 degree epsilon gamma kernel max_iter shrinking tol verbose
LogisticRegression: C class_weight dual fit_intercept intercept_scaling l1_ratio max_iter n_jobs penalty random_state
    solver tol verbose warm_start
RidgeClassifier: alpha class_weight copy_X fit_intercept max_iter positive random_state solver tol
Ridge: alpha copy_X fit_intercept max_iter positive random_state solver tol
LinearRegression: copy_X fit_intercept n_jobs positive tol
Lasso: alpha copy_X fit_intercept max_iter positive precompute random_state selection tol warm_start
ElasticNet: alpha copy_X fit_intercept l1_ratio max_iter positive precompute random_state selection tol warm_start
"""


def _parsed() -> dict[str, frozenset[str]]:
    found: dict[str, list[str]] = {}
    for line in _KNOWN.strip().splitlines():
        head, _, tail = line.rpartition(": ")
        words = found.setdefault(head, []) if head else next(reversed(found.values()))
        words += [name for word in tail.split() for name in (_TREE.split() if word == "TREE" else [word])]
    return {name: frozenset(words) for name, words in found.items()}


PARAMETERS = _parsed()
