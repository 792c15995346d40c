"""Estimators and learners. Lines marked `type: ignore` are a user's mistakes."""

import numpy as np
from curvk.machines import EigenPro4Classifier, KernelRidgeCG
from curvk.online import FORKSClassifier, KONSRegressor

X, y = np.zeros((20, 4)), np.arange(20) % 2
machine = EigenPro4Classifier(n_centers=10, kernel="gaussian", random_state=0).fit(X, y)
predicted: object = machine.predict(X)
same: EigenPro4Classifier = machine
EigenPro4Classifier(centres=10)  # type: ignore[call-arg]
EigenPro4Classifier(10, "gaussian")  # type: ignore[call-arg]
KernelRidgeCG(alpha="small")  # type: ignore[arg-type]
machine.predict()  # type: ignore[call-arg]

learner = FORKSClassifier(budget=50, random_state=1)
learner.partial_fit(X, y, classes=[0, 1])
decisions, mistakes = learner.progressive(X, y)
FORKSClassifier(buget=50)  # type: ignore[call-arg]
FORKSClassifier(budget="small")  # type: ignore[arg-type]
KONSRegressor().learn_one(X[0])  # type: ignore[call-arg]
